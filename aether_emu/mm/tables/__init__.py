"""Page tables: the bytes, the ways down through them, and every edit of a range."""
