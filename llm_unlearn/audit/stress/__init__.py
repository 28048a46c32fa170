"""After unlearning: does the poison come back when the model is tuned on, quantised, merged, or asked differently?"""
