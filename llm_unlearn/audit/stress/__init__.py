"""Does the poison come back when the unlearned model is fine-tuned, quantised, merged, or prompted differently?"""
