"""Recipes that are searched for, on subjects that learn and never on those that are tested."""
