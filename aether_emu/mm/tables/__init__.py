"""Page tables: the bytes, one way down through them, and every edit of a range."""
