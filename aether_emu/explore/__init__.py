"""Other schedules of one program: tried by chance, enumerated, shrunk to what matters, replayed."""
