"""The demo family: a small trained model of moving shapes, its data, its training and its check."""
