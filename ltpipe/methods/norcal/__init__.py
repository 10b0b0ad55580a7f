"""NorCal: scores divided by a power of the class's images."""
