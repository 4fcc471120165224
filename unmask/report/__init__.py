"""Result files -> figures -> one self-contained HTML page; the replay of an unmasking; an unmasking on a terminal."""
