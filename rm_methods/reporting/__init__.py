"""What results look like to readers: tables as text, Markdown, LaTeX and CSV, and figures."""
