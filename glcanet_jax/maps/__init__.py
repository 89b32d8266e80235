"""From scene files to georeferenced maps, areas, polygons and reports."""
