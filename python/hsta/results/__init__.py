"""What a trained model says, of test clips and of videos: scores, tables, pictures, speed."""
