"""Text matching as a service: which stored texts mean the same as this one, and how sure are we?"""
