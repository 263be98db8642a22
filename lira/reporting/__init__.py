"""What people read: figures, tables, pictures and pages, and the checks that stand beside them."""
