"""How good a model is: exact accuracy, and few-shot accuracy of its features.

classification.py counts every example of a split once; features.py regresses
labels from frozen features, with the NumPy solver of fewshot.py. Both go over
a split with passes.py, on any number of replicas and hosts. report.py and
pictures.py show the results, paper.py has those that others reported.
"""
