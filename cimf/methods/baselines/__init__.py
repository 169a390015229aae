"""Published pruning methods on the same statistics, data and accounting as the layered one."""
