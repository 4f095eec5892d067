"""Networks, training and inference. Imports torch; never imports ``stream``."""
