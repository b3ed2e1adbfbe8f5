"""Networks made smaller: units pruned, dense layers factored, and both built again."""
