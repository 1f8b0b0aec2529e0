"""What happens to an image on its way to the model."""
