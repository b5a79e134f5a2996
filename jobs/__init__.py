"""What runs: experiments, plans, sweeps, comparison."""
