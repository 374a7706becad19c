module goprogram

go 1.27
