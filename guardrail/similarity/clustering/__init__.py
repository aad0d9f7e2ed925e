"""Groups of similar rows: clustering in cosine geometry, description of every cluster, choice of one, stability.

clusters   cluster representations in cosine geometry, and say what every cluster is
options    what a clustering can be: its algorithms and options
pipeline   the group of a data set that is most alike inside: cluster over several seeds, describe, choose, ...
"""
