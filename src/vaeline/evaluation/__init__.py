"""How good a trained model is: the bound on a split, latent metrics, probes, paired comparison, drift."""
