"""What a weights file is, said to people (``card``, ``info``) and to catalogues (``stac``), and published with it (``push``)."""
