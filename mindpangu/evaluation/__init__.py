"""How good models are: the judge, comparisons, the experiments of docs/."""
