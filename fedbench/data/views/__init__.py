"""Two random views of a batch of images."""
