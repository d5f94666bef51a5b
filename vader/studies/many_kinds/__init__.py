"""Many kinds of objects in one model: photographed ones (Figure 4), and what limits their reconstruction (Table 3) and
what is heard of their captions (Figure 5)."""
