"""Page tables alone."""
