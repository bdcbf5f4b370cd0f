"""Whether a deployment is fit to run: checks of real endpoints, files and clocks that spend nothing."""
