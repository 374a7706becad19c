"""The emulated computer: its memory, file windows and CPUs. The only folder that imports the engine."""
