"""Evaluation of a folder of predictions against a folder of masks.

`evaluation.json`, strict JSON, null where a figure is undefined. Figures with an interval are objects
`{"value": .8, "low": .7, "high": .9}` (95 % over patients; low and high null with fewer than two patients).

    {
      "schema": 1, "scotoma": "0.1.0", "created": "2025-01-31T12:00:00+00:00", "versions": {"numpy": "..."},
      "predictions": "/abs/folder", "truth": "/abs/folder", "recipe": "baseline" | null, "run": "..." | null,
      "unit": "mm" | "px", "volume_unit": "ml" | "mm2" | "px",
      "classes": ["background", "lesion", ...],           class index = position
      "settings": {"seed": 0, "surface_tolerance": 1.0, "both_empty": "undefined", "bootstrap": 2000,
                   "confidence": 0.95, "connectivity": "full", "thresholds": [...], "min_iou": 0.1,
                   "calibration_bins": 15, "definitions": {"hd95": "one sentence", ...}},
      "notes": ["sentence", ...],                         said to the user: value mapping, absent probabilities
      "counts": {"expected": 52, "evaluated": 50, "failed": 2, "not_predicted": 0},
      "failed": {"<case>": "sentence"},                   missing prediction, unreadable, other grid ...
      "not_predicted": ["<case>", ...],                   masks nobody asked a prediction for
      "cases": [{
        "case": "a_001", "patient": "a", "images": ["/abs/..."], "prediction": "/abs/...", "truth": "/abs/...",
        "probabilities": "/abs/..." | null, "shape": [..], "spacing": [..], "ignored_voxels": 0,
        "classes": {"lesion": {
          "situation": "present" | "miss" | "false_alarm" | "both_empty",
          "dice", "iou", "sensitivity", "precision", "hd95", "average_surface_distance", "surface_dice",
          "volume_truth", "volume_prediction", "volume_error", "relative_volume_error": number | null,
          "true_positives", "false_positives", "false_negatives": voxels}},
        "mean_dice": number | null,                       over the foreground classes where it is defined
        "lesions": {"lesion": {                           also "any foreground" with two or more classes
          "n_lesions", "n_detected", "n_detected_iou", "n_candidates", "n_true_candidates",
          "n_true_candidates_iou", "n_false_positives", "n_split", "n_merged": counts of the mask,
          "sensitivity", "precision", "f1": number | null,
          "truth": [{"id": 1, "volume", "diameter", "centre": [voxel index], "box": [[start, stop], ...],
                     "detected": true, "detected_iou": true, "confidence": .97 | null, "iou": .6, "dice": .75,
                     "candidates": [ids]}],
                     confidence: the highest threshold at which it is still touched = its highest
                     probability; dice: with all candidates that touch it, null when missed
          "candidates": [{"id": 1, "volume", "diameter", "centre", "box", "confidence", "true": true,
                          "lesions": [ids]}],             all true ones, false ones up to 1000 by confidence
          "sweep": {"detected": [..], "detected_iou": [..], "candidates": [..], "true_candidates": [..],
                    "true_candidates_iou": [..]} | null}},   one count per threshold of the settings
        "calibration": {"ece", "brier", "ece_foreground", "n_voxels"} | null
      }],
      "summary": {"lesion": {"dice": {"mean", "low", "high", "median", "std", "min", "max", "n": defined cases,
                                      "n_undefined", "n_missed"}, ... every metric of a case},
                  "all classes": {the same, case means over the foreground classes}},
      "pooled": {"lesion": {"dice", "iou", "sensitivity", "precision": interval objects, voxels of all cases}},
      "lesions": {"lesion": {
        "n_cases", "n_patients", "n_lesions", "n_detected", "n_candidates", "n_false_positives",
        "n_split", "n_merged",
        "sensitivity", "precision", "f1", "false_positives_per_case": interval objects, of the masks,
        "iou": {"sensitivity", "precision", "f1", "max_sensitivity", "average_precision"}  by IoU > min_iou,
        "dice_true_positives": {"mean", "low", "high", "median", "std", "min", "max", "n"},
        "average_precision", "max_sensitivity", "sensitivity_at_half": interval objects | null,
        "max_sensitivity_threshold": number | null,
        "patient_mean_average_precision": {"mean", "low", "high", ..., "n", "n_undefined"} | null,
        "froc": {"threshold": [..], "sensitivity": [..], "low": [..], "high": [..],
                 "false_positives_per_case": [..],
                 "sensitivity_at": {"0.125": .., "0.25": .., "0.5": .., "1": .., "2": .., "4": .., "8": ..}}
                | null,
        "precision_recall": {"threshold": [..], "precision": [.. | null], "recall": [..]} | null,
        "by_size": [{"from": 0, "to": 3 | null, "n", "detected", "sensitivity", "low", "high"}]  diameters
      }},
      "calibration": {"n_cases", "ece", "ece_foreground", "brier": interval objects,
                      "bins": [{"from", "to", "n", "confidence", "accuracy"}],
                      "bins_foreground": [the same]} | null,
      "worst_to_best": ["<case>", ...]                    by mean_dice, undefined last
    }

`cases.csv`: one row per case and class. `lesions.csv`: one row per lesion (`kind` = truth) and per
candidate that is no lesion (`kind` = false positive).
"""
