"""The parts of the HTML pages: the document, its tables, films, studies and the verdict on top."""
