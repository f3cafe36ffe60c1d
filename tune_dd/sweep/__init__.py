"""The command: plan a search, run or resume it, hand its table over to analysis."""
