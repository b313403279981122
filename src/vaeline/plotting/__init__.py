"""Charts and image sheets, by matplotlib."""
