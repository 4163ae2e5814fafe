"""Other people's data: files, folders, columns, targets."""
