"""The admin's pages in a real Chromium, on a real gateway with real ICEs."""
