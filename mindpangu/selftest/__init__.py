"""Whether operators, nets and training are right on this machine."""
