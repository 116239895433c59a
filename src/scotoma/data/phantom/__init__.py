"""Brain phantom: co-registered T1 and FLAIR volumes with white-matter lesions whose truth is known."""

from scotoma.data.phantom.folder import generate_phantom
from scotoma.data.phantom.patient import LESION_KINDS, PhantomPatient, make_patient

__all__ = ["LESION_KINDS", "PhantomPatient", "generate_phantom", "make_patient"]
