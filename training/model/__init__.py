"""The proposer, the estimators of its gradient, the classifier."""
