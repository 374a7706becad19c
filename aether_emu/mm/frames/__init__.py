"""Page frames: who has them, who may have them next, which of them hold code."""
