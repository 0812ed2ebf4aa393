"""Train a vision language model of the family from scratch: it reads handwritten numbers on a page of any size."""
