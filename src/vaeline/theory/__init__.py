"""The theory on a trained model: every claim an equation, a number and a picture."""
