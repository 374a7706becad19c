"""Encoders under judgement, and encoders that are wrong on purpose."""
