"""Speed, side by side: our nets and their PyTorch peers on the same weights, alternating in one run."""
