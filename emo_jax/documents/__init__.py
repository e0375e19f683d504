"""Documents from files of any kind: found, checked, read one by one."""
