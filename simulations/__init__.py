"""Studies on one machine: scenarios on real data, grids without a network, comparisons."""
