"""What `receiver doctor` looks at: one file for each place where trouble may be."""
