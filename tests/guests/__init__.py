"""The guest programs on the whole machine, compared with what real Linux printed."""
