"""An experiment: its folder, its runs, what each result depends on."""
