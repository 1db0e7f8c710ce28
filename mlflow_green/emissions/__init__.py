"""Carbon and money: energy times sourced factors."""
