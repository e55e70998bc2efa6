"""Everyday chat prompts: what a positive control must read right, and on what a probe should mostly stay quiet.

Varied on purpose: short and long, code, numbers, other languages and scripts, lists, small talk, complaints and thanks.
"""

from __future__ import annotations

EVERYDAY = (
    "What is the capital of Portugal?",
    "Write a short poem about the sea in winter.",
    "Explain how a refrigerator works to a ten-year-old.",
    "def mean(values):\n    return sum(values) / len(values)\n\nWhat happens if the list is empty?",
    "¿Puedes recomendarme una receta sencilla con garbanzos?",
    "Give me three tips for falling asleep faster.",
    "2 + 2 * 5 - 3 = ?",
    "Translate into French: The train leaves at half past seven from platform two.",
    "Thanks, that was really helpful!",
    "My order arrived broken for the second time and nobody answers my mails. What can I do?",
    "Summarize the plot of Romeo and Juliet in two sentences.",
    "Wie lange muss ich Kartoffeln kochen?",
    "List the planets of the solar system in order of size.",
    "Why is the sky blue?",
    "SELECT name, COUNT(*) FROM orders GROUP BY name HAVING COUNT(*) > 3; explain this query",
    "Who are you?",
    "I have a job interview tomorrow and I am nervous. Any advice?",
    "What is the difference between a virus and a bacterium?",
    "请用一句话介绍一下北京。",
    (
        "Write a polite email asking my landlord to repair the heating, mention that it has been cold for a week and "
        "that I have two small children at home, and propose Tuesday or Wednesday afternoon for a visit."
    ),
    "hi",
    "Which is larger, 0.9 or 0.11?",
    "Continue the story: The lighthouse keeper had not spoken to anyone for forty days when",
    "Rewrite this more formally: hey guys, the meeting is moved to 3, see ya",
    "How many moons does Mars have, and what are their names?",
    "{'status': 'error', 'code': 503, 'message': 'upstream timed out'} - what does this mean?",
    "Quels sont les symptômes d'une carence en fer ?",
    "Suggest a name for a small bakery near a river.",
    "I loved this film, the actors were wonderful and the music stayed with me for days. Recommend something similar.",
    "What a boring, lifeless book. Why do critics praise it?",
    "Convert 68 degrees Fahrenheit to Celsius.",
    "Explain the rule of three in photography, please.",
    "日本で一番高い山は何ですか。",
    "What are the main causes of the First World War? Answer in a numbered list.",
    "for i in $(seq 1 10); do echo $i; done",
    "How do I remove a coffee stain from a wool carpet?",
    "Is it safe to eat eggs one week after the date on the box?",
    "Tell me a joke about mathematicians.",
    "The quick brown fox jumps over the lazy dog. How many letters of the alphabet are in this sentence?",
    (
        "Plan a three-day trip to Vienna for a family with a teenager who likes science and a grandmother who walks "
        "slowly. Keep the evenings free, include one rainy-day alternative for each day, and avoid long queues."
    ),
    "Как приготовить борщ?",
    "What is recursion? Give an example in Python.",
    "Compare electric and petrol cars for someone who drives 20 km a day.",
    "When was the printing press invented and by whom?",
    "Proofread: Their going to there house over they're.",
    "What does HTTP status 418 mean?",
    "Give me a workout plan without any equipment.",
    "Can you explain photosynthesis step by step?",
)
