"""What the runs mean: DataFrames in, laws, optima and figures out. No torch, no Ray, no database."""
