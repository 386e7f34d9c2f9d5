"""Pictures of treatment effects; every function returns the matplotlib figure and shows nothing by itself."""

from captum_causalseg.visualization.comparison import plot_comparison
from captum_causalseg.visualization.component_bars import plot_components
from captum_causalseg.visualization.convergence import plot_convergence
from captum_causalseg.visualization.donors import plot_donors
from captum_causalseg.visualization.effects import plot_effects, plot_volume
from captum_causalseg.visualization.heads import plot_heads
from captum_causalseg.visualization.influence_cells import plot_influence
from captum_causalseg.visualization.interaction_arcs import plot_interactions
from captum_causalseg.visualization.pathway import plot_pathway
from captum_causalseg.visualization.profile import plot_profile
from captum_causalseg.visualization.prompts import plot_prompts
from captum_causalseg.visualization.region import plot_region
from captum_causalseg.visualization.support import plot_support

__all__ = [
    "plot_comparison",
    "plot_components",
    "plot_convergence",
    "plot_donors",
    "plot_effects",
    "plot_heads",
    "plot_influence",
    "plot_interactions",
    "plot_pathway",
    "plot_profile",
    "plot_prompts",
    "plot_region",
    "plot_support",
    "plot_volume",
]
