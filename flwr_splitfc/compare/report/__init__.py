"""What a comparison writes: tables, figures and a page."""
